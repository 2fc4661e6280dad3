"""What a browser reads: `render` fills the template with a report's data, style and scripts into one file.

Not here: any number or sentence of a report (`report.data`).
"""
