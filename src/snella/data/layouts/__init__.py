"""How data sets lie on disk or on a hub: a file a layout, each of which gives a listing."""
