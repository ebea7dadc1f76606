def enable_custom_widget_manager():
    """Colab needs this for widgets that are not part of ipywidgets."""
