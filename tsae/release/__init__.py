"""A finished run as one folder and archive to publish, and the check of such a folder."""
