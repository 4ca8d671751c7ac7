"""What differs between tasks: data, model, loss, metrics and predictions. `table` lists them, `interface` says how."""
