"""What every wing uses: files, digests, progress, ranks."""
