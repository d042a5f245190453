"""The demo: the page (`interface`), what its buttons call (`handlers`), answers as HTML, and uploads."""
