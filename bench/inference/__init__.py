"""The inference service under load: `./volary bench inference`."""
