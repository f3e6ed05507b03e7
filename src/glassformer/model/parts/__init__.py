"""The parts that layers are made of, as torch modules: one file for each kind, named as its choice.

A part brings its forward with its sites, how what a trace keeps gives everything else back, its
terms in the additive decomposition, and its cache.
"""
