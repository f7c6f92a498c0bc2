"""Flower, the dashboard that every Celery user knows, on our broker and through our app."""
