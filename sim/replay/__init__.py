"""Recorded history as worlds of the arena: what would another policy have done with these weeks?"""
