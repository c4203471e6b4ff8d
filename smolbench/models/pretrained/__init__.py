"""Any Hugging Face model: loaded, adapted, quantized."""
