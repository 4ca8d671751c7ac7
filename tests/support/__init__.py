"""What several tests build: tiny models, images, runs."""
