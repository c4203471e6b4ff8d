"""What a training step needs: parameters, optimizer, activations."""
