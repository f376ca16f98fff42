"""The form of the links to the status pages of buyers."""

STATUS_PATH = "/p"
"""The path of the status pages; a page's token follows."""
RETURNED_QUERY = "returned"
"""The field of the query with which a provider sends a buyer back: the page then asks the
provider.
"""
