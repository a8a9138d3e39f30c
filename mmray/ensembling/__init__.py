"""Ensembles: the stored predictions of several runs combined, block of rows by block of rows. No Ray here.

    inputs      the members: what they predicted, matched by id, cut into blocks
    pooling     scores of classes of several members to one, by a rule
    contours    the same for melodies: frames of posteriors, and the median of contours
    blocks      one block: read, combine, write; or what a fit or a report needs of it
    fitting     rules that are learned: weights, greedy selection, stacking
    forest      a random forest over candidate classes, as plain arrays
    soup        the mean of the weights of runs of one architecture

`mmray.on_ray.ensemble` makes each block a task. A block's result depends on its rows alone: any number of blocks or
workers and any order of the members give the same bits.

What is learned is learned on the split `val`, whatever is predicted: no function that fits takes another.
"""

FITTED_ON = "val"
