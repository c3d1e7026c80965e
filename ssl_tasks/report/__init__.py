"""Makes the HTML report of a run and the page of a comparison; `page.write_report` writes a report."""
