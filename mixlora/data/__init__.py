"""Examples of tasks: what one is, how files of them are read, and how a model is fed with them."""
