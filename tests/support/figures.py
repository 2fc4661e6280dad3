"""What is read from figures: cells, words and ticks; and names that a figure must not take for markup."""

from matplotlib.collections import QuadMesh

QUICK = {"replicates": 50}
EVIL = ("$\\alpha_1$ a_b <b> & 50%", "b$c \x1b[31m")


def mesh(axes):
    (found,) = [child for child in axes.get_children() if isinstance(child, QuadMesh)]
    return found


def texts(axes):
    return [text.get_text() for text in axes.texts]


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]
