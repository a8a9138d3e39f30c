"""From run folders to something to look at: `plots` draws, `page` writes the HTML page."""
