"""What differs between tasks: model, loss, metrics and predictions."""
