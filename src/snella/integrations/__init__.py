"""The tuner inside other libraries' pipelines and trainers."""
