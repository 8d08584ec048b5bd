"""The ground: numbers, trees, hyper-parameters and the one transformation type; it knows no method."""
