"""What lies on the disk, what of it something needs, and freeing the rest.

What a version, a commit or an unfinished run needs is found out here and nowhere else.
"""
