"""What PEFT's own method comparisons need for an entry of SNELLA; the README here says how it is run there."""
