"""Finished runs side by side: tables, page, pictures, significance."""
