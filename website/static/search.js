/* Excerpts of found pages: words of the article alone, without menus, with spaces between its parts. */
if (typeof Search !== "undefined")
  Search.htmlToText = (text, anchor) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    page.querySelectorAll(".headerlink, script, style").forEach((element) => element.remove());
    page.querySelectorAll("p, li, td, th, pre, h1, h2, h3, h4, div").forEach((element) => element.append(" "));
    const article = page.querySelector("article") || page.body;
    return ((anchor && article.querySelector(anchor)) || article).textContent.replace(/\s+/g, " ");
  };
