"""Ways to train the same federation: fedsim, the centralised limit and its peers, one file each."""
