"""Progress bars whose stand-in in a stored notebook says how many steps there were, and not `0%| | 0/30`."""

from tqdm import notebook


class Bar(notebook.TqdmHBox):
    """tqdm's own row of widgets; only its text is another."""

    def __repr__(self, pretty: bool = False) -> str:  # what a reader without a kernel sees in its place
        total = self.pbar.format_dict["total"]
        return f"(a progress bar over {total:,} steps)" if total else "(a progress bar)"


class tqdm(notebook.tqdm):
    """`for step in tqdm(train(...), total=30)`, as tqdm's own, in JupyterLab and Colab."""

    @staticmethod
    def status_printer(*args, **options) -> Bar:
        container = notebook.tqdm.status_printer(*args, **options)
        container.__class__ = Bar
        return container
