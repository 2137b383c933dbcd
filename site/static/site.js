// What can be scrolled sideways can be scrolled with the keyboard, too.
for (const box of document.querySelectorAll(".formula, pre, .pst-scrollable-table-container, .output")) {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}

// The arrows in the sidebar have no word of their own.
for (const arrow of document.querySelectorAll("summary:has(> .toctree-toggle)")) {
  const link = arrow.closest("li").querySelector("a");
  arrow.setAttribute("aria-label", `Pages of “${link.textContent.trim()}”`);
}
