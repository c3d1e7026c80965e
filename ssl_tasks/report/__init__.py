"""The page that a person looks at: `page.write_report` writes it, `collect.report_data` gives what it shows."""
