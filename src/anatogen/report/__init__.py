"""What results are shown with: rows, figures, pages, progress."""
