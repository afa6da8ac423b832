"""Training of Luminode's networks. Nothing of the node is imported here, nor the other way round."""
