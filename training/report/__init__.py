"""The evaluation report: one page a section, every figure with its metric card, all figures as JSON beside them."""
