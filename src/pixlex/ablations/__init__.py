"""The ablations of LQAE: rows of one recipe, trained, measured alike, put into one table."""
