"""How the embedded model is trained and measured: text, tasks, training and evaluation.

Importing this package is light; `transformers` is imported only when a model is built or loaded.
"""
