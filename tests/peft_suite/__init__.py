"""PEFT's own tests with SNELLA as one of its methods: `make test-peft`."""
