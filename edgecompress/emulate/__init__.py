"""Teacher and student on emulated hosts: namespaces, links that are measured before they are used,
and captures of real traffic.
"""
