"""Runs on the Hugging Face hub: what is pushed, its card, and how a run named OWNER/NAME becomes a folder."""
