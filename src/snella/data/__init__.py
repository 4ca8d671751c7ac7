"""Images in: readers for every layout, transforms, and batches that are the same however they are loaded."""
