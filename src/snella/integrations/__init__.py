"""What joins the tuner to other libraries' pipelines and trainers."""
