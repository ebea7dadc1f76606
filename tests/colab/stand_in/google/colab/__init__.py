"""Stands in for the module that only Colab has: that it imports is how a notebook knows where it runs."""
