"""The method `fit`: a target solved from a source's activations on unlabelled inputs."""
