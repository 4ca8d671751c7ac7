"""One training in several processes: who they are, what they exchange, and which part of a batch is whose."""
