"""What a prediction rests on: heat maps of classifiers."""
