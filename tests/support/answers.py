"""Predictions written down in short."""

from mixlora.evaluation.predictions import Prediction


def predictions(*pairs, task="t", **more):
    """One for each (predict, target), with the ids 0, 1, ..."""
    return [Prediction(str(i), task, "?", said, target, **more) for i, (said, target) in enumerate(pairs)]


def coded(letters, image=False):
    """Yes-or-no answers: t, f truly and falsely yes; n, m truly and falsely no; u no answer to a yes."""
    codes = {"t": ("Yes", "yes"), "f": ("Yes", "no"), "n": ("No", "no"), "m": ("No", "yes"), "u": ("Hm", "yes")}
    return [
        Prediction(str(i), "t", "?", *codes[letter], image_path=f"{i // 2}.png" if image else None)
        for i, letter in enumerate(letters)
    ]
