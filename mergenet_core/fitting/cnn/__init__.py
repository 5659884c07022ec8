"""The closed form of a fit between CNNs."""
