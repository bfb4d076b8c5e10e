"""What policies mean: the pure core of Lark. Imports nothing of the other packages."""
