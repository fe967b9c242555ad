"""Who is champion, why, and can it be proved.

Nothing here makes or changes a version.
"""
