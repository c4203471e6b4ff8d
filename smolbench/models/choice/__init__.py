"""Multiple choice: conventions, rows that share a context, log-likelihoods."""
