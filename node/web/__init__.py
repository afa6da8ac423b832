"""Pages for whoever watches the node: is it alive, is it ready, how much of what. Nothing can be changed by them."""
