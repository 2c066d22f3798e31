"""Teacher and student on emulated hosts: namespaces, links that are measured before they are used,
real traffic that is captured.
"""
