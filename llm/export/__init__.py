"""Exports an adapter to llama.cpp and programs built on it, to Ollama, and to the Hugging Face Hub.

`gguf.py` writes an adapter or a merged model as a llama.cpp file; `llama_cpp.py` runs llama.cpp's own server on such a
file; `modelfile.py` writes what Ollama needs beside it; `model_card.py` writes a folder for the Hub.
"""
