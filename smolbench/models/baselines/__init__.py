"""Baselines: scikit-learn pipelines, CNN, LSTM, words and word vectors."""
